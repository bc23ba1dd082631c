"""What commands other than the gate print."""
