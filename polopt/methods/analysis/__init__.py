"""What can be measured of methods, policies and data without learning anything."""
