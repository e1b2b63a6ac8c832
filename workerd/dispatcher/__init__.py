"""The dispatcher: claims jobs for pools with free capacity, renews the lease, keeps everything moving."""
