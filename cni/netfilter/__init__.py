"""The packet filters: iptables, nftables, and the rules that plugins have there."""
