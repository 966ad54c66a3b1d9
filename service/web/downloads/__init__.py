"""Archives of orders, and their receipts and events."""
