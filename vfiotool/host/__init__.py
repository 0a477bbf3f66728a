"""What this machine's kernel says of its devices. Read only: nothing in here changes the machine."""
