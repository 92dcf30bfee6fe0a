"""Runs in the environment of datumaro, which has no maskwright.

write FORMAT SCENE.npz FOLDER   export a scene; of FORMAT coco_instances: polygons, masks; or coco_panoptic
read FORMAT FOLDER OUT.npz      import a folder in COCO's layout: `NAME/labels` and `NAME/masks` of each picture
"""
