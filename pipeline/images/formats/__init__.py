"""What headers of image files say, read from their bytes alone: enough to refuse, and to know whole from cut."""
