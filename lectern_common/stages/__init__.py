"""The stages around training: what each is asked, and the folder that its task keeps."""
