"""Files, images, progress bars, hashing, precision and versions: what every other package uses."""
