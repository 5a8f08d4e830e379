"""What paths and tables say of an image: class, label, subject, split; and the manifest made of it.

Images are decoded only to look for near copies, small.
"""
