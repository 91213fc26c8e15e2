"""The phantom: X-rays drawn by this project. No other room uses it."""
