"""What paths and tables say of an image: class, label, subject, split; and the manifest made of it.

No image is decoded here.
"""
