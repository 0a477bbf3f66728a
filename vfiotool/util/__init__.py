"""The ground floor: files, processes, kernel files and text. It imports nothing of vfiotool but errors."""
