"""CheXseg: chest X-ray segmentation from expert annotations and classifier saliency maps (Gadgil et al., MIDL 2021).

Nothing in this package reads `constants`: paths and class lists arrive as arguments.
"""
