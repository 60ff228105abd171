"""The packet filters: iptables, nftables, and the rules that plugins keep there."""
