"""The reference's checkpoint: what its keys are, and what the converted model computes."""

from __future__ import annotations

import json

from cases_max_deeplab_network import WEIGHTS, check_chain, create_network
from parity_data import ParityData

from maskwright.convert.checkpoint import Checkpoint, Variables
from maskwright.convert.max_deeplab import MAX_DEEPLAB
from maskwright.convert.tables import load_variables, module_table
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
CHECKPOINT = "model/ckpt_legacy/ckpt-3"


def check_converted(data: ParityData, file: str) -> None:
    """The variables of the checkpoint are those of the network, and the network's outputs the reference's."""
    arrays = data.arrays(file)
    image = arrays["image"]

    def create() -> MaXDeepLabNetwork:
        network = create_network(data, (image.shape[1], image.shape[2]))
        load_variables(network, module_table(network, MAX_DEEPLAB), Variables(data.folder / CHECKPOINT), "model")
        return network.eval()

    check_chain(create, image, arrays)


def check_checkpoint_file(data: ParityData, file: str) -> None:
    """Every key is a variable of the model, an optimizer's or a counter."""
    variables = Variables(data.folder / file)
    others = variables.others()
    assert {path.removeprefix("model/") for path in variables} == set(data.arrays(WEIGHTS))
    assert not others.unknown
    assert others.optimizer_slots


def check_keys(data: ParityData, file: str) -> None:
    """The listing of the checkpoint's keys, and shapes."""
    checkpoint = Checkpoint(data.folder / CHECKPOINT)
    listed = json.loads((data.folder / file).read_text())["keys"]
    assert set(checkpoint.keys()) == set(listed)
    for key, shape in listed.items():
        if key.endswith(SUFFIX):
            assert list(checkpoint.read(key).shape) == shape, key


def check_keys_of_new_optimizer(data: ParityData, file: str) -> None:
    """All keys but the variables' are those of optimizers and counters, which are passed over."""
    listed = json.loads((data.folder / file).read_text())
    variables = set(data.arrays(WEIGHTS))
    rest = {key for key in listed if key.removesuffix(SUFFIX) not in variables}
    known = {"optimizer", "backbone_optimizer", "global_step", "save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert {key.partition("/")[0] for key in rest} <= known


CHECKS = {
    "inference from model/ckpt_legacy": [check_converted],
    "tf.train.CheckpointManager as in train_lib.run_experiment": [check_checkpoint_file],
    "list of keys/shapes in the checkpoint, Keras names, backbone-lr group": [check_keys],
    "checkpoint keys/shapes written by the unmodified trainer under tf_keras 2.19 "
    "(new-style Adam: optimizer/_variables/N)": [check_keys_of_new_optimizer],
}
