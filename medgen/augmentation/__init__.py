"""Does synthetic data help?"""
