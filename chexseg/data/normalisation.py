"""How a network's input is normalised, by name. Light to import, so that options can choose from the names."""

# (mean, standard deviation) of an image in 0..1, per RGB channel.
NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "chexpert": ((0.5020,) * 3, (0.085585,) * 3),
    "torchxrayvision": ((0.5,) * 3, (1 / 2048,) * 3),  # -1024 to 1024
}
