"""Pictures of networks, images and runs, with Pillow and matplotlib."""
