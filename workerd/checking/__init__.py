"""`workerd check`: what a configuration would start here, whether its handlers load, what is weaker here."""
