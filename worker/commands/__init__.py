"""What a volunteer types, a module for each subject. Light; what is heavy loads when used."""
