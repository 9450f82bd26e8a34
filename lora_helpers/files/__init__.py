"""What lies on a disk or on the Hub: where it is, what identifies it, how it is read and written."""
