"""What a volunteer types, a module for each subject. Each is light; what is heavy loads when used."""
