"""Stages 0 to 2: the classifier, its saliency maps, and masks made of them."""
