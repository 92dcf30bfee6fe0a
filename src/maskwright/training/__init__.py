"""From a recipe to trained weights. The only package that knows Lightning.

A recipe goes from the command line to the optimizer through these modules:

1. `run`: the arguments of `maskwright train`; `recipes`: a YAML file, its base and the overrides, checked against the
   family's configuration and the classes of `options`.
2. `engine`: opens the data sets (`data_sets`), builds the model, gives it its first weights (`initial_weights`), tries
   it once (`rehearsal`), takes the run's folder (`run_folder`) and starts Lightning's Trainer.

What happens to a batch, in this order, on every device:

1. `data_sets`: it is drawn and augmented, as a function of (seed, step, rank), and moved to the device.
2. `task`: the random state is set for it; the model gives its losses, whose sum is the objective, and they go to
   TensorBoard.
3. Trainer: mixed precision, the backward pass, the mean of the gradients over all devices.

After `trainer.accumulate` batches:

4. Trainer: the norm of the gradient is clipped to `optimizer.gradient_clip`.
5. `optimizers`: the optimizer takes a step over the model's parameter groups, and the learning rate its next value.
6. `callbacks`: `ExponentialAverage` averages the weights; `RunRecords` writes the losses and moves the progress bar;
   `RunCheckpoints` saves, if it is time, and stops the run after its last step or at a signal (`StopRequest`).
7. `task` and `evaluation.measurement`, every `trainer.validate_every_steps` steps and after the last one: the averaged
   weights are measured; `validation_pictures` shows some images in TensorBoard, `RunRecords` writes the metrics, and
   `RunCheckpoints` saves the weights, as `best` if they are.
"""
