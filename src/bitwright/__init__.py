"""bitwright: trained language models in 1-4 stored bits a weight."""
