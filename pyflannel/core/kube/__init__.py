"""What flannel keeps on Kubernetes' node objects, and who is a peer by it. Pure."""
