"""The names that options of the command line choose from. Light to import: no torch, no pandas, no OpenCV."""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201")
ARCHITECTURES = ("resnet10w32", *RESNETS, *DENSENETS, "mobilenet_v2")
# Pixels from one position of the last feature map to the next (`output_stride`), and how its positions become one logit
# (`pooling`); the first of each is the paper's.
OUTPUT_STRIDES = (32, 16, 8)
POOLINGS = ("average", "lse", "pcam")
# The longest side of the input that a network file may ask for, in pixels.
MAX_SIDE = 2048
# How saliency maps are made (`cam`); all but the first need the package grad-cam.
CAM_METHODS = ("gradcam", "gradcam++", "layercam")
# How maps become masks (`saliency_masks.threshold_maps`).
PROTOCOLS = ("chexseg", "chexlocalize")
