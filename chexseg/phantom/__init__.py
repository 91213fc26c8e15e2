"""Phantom X-rays, drawn by this project for trying everything without patients' data. No other room uses this one."""
