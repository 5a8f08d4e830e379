"""Who was told what of which image: a line an image, written before the answer goes out.

Holds no file name, no subject and no byte of an image. Knows nothing of HTTP.
"""
