/* Hardware addresses, and IP addresses as text in Go's form. */
#ifndef CNI_ADDRESSES_H
#define CNI_ADDRESSES_H

#include <stddef.h>
#include <stdint.h>

#define CNI_HWADDR_LEN 6
#define CNI_HWADDR_TEXT 18 /* with the closing NUL */
#define CNI_IP_TEXT 46

/* Derive a MAC from an IP address: 0a:58, then the IPv4 address or the last four
 * bytes of the IPv6 address. `length` is 4 or 16. */
void cni_hwaddr_from_ip(const uint8_t *ip, size_t length, uint8_t out[CNI_HWADDR_LEN]);

/* Parse "0a:58:0a:01:02:03" or "0a-58-...". Return 0, or -1 if it is neither. */
int cni_hwaddr_parse(const char *text, uint8_t out[CNI_HWADDR_LEN]);
void cni_hwaddr_format(const uint8_t hwaddr[CNI_HWADDR_LEN], char out[CNI_HWADDR_TEXT]);

/* Parse an IPv4 or IPv6 literal. Return its length, 4 or 16 (a v4-mapped one has 4), or -1. */
int cni_ip_parse(const char *text, uint8_t out[16]);
/* Format as Go does: RFC 5952, but never with a dotted quad at the end. */
void cni_ip_format(const uint8_t *ip, size_t length, char out[CNI_IP_TEXT]);

#endif
