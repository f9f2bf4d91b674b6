"""What the benchmarks of pre-training share. A folder, since `make bench` runs every file beside it."""
