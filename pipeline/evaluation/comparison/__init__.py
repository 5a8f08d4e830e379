"""Several models on the same images: figures beside each other, paired differences, what they disagree on, their speed.

`predict` asks all of them about every image, `paired` and `delong` compare, `result` puts it together, `page` shows it.
"""
