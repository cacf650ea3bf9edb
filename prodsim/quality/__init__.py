"""What is wrong with product data, how to mend it, and what the mending is worth: one room (module) per question."""
