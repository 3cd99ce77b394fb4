"""What acts: distributions and the policies that give them."""
