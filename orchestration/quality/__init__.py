"""What is wrong, or may be: the doctor, alerts, the account of what is published, the score of cleaning."""
