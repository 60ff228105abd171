/* Hardware addresses, and IP addresses as text the way Go writes them. */
#ifndef CNI_ADDRESSES_H
#define CNI_ADDRESSES_H

#include <stddef.h>
#include <stdint.h>

#define CNI_HWADDR_LEN 6
#define CNI_HWADDR_TEXT 18 /* with the closing NUL */
#define CNI_IP_TEXT 46

/* The MAC that follows from an IP address: 0a:58, then the IPv4 address or the
 * last four bytes of the IPv6 one. `length` is 4 or 16. */
void cni_hwaddr_from_ip(const uint8_t *ip, size_t length, uint8_t out[CNI_HWADDR_LEN]);

/* "0a:58:0a:01:02:03" or "0a-58-...". 0, or -1 where it is neither. */
int cni_hwaddr_parse(const char *text, uint8_t out[CNI_HWADDR_LEN]);
void cni_hwaddr_format(const uint8_t hwaddr[CNI_HWADDR_LEN], char out[CNI_HWADDR_TEXT]);

/* An IPv4 or IPv6 literal. Returns 4 or 16 (a v4-mapped one is 4), or -1. */
int cni_ip_parse(const char *text, uint8_t out[16]);
/* Go's canonical text: RFC 5952, never a dotted quad at the end. */
void cni_ip_format(const uint8_t *ip, size_t length, char out[CNI_IP_TEXT]);

#endif
