"""What donors do besides training: keys, devices, pledges, teams, profiles.

Everything that is told to the run is a signed act (``protocol/wire/records.proto``), noted on this
machine before it is sent.
"""
