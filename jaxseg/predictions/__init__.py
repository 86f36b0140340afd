"""What `jaxseg predict` writes: class maps, pictures, files of COCO, and videos."""
