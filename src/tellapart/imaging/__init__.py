"""Image files in, pixels out: numpy, Pillow and simplejpeg."""
