#include "addresses.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const uint8_t v4_mapped[12] = {[10] = 0xff, [11] = 0xff};

void cni_hwaddr_from_ip(const uint8_t *ip, size_t length, uint8_t out[CNI_HWADDR_LEN])
{
    out[0] = 0x0a; /* locally administered, unicast */
    out[1] = 0x58;
    memcpy(out + 2, ip + length - 4, 4);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int cni_hwaddr_parse(const char *text, uint8_t out[CNI_HWADDR_LEN])
{
    char separator = text[0] && text[1] ? text[2] : '\0';

    if (separator != ':' && separator != '-')
        return -1;
    for (int i = 0; i < CNI_HWADDR_LEN; i++, text += 3) {
        int high = hex_digit(text[0]);
        int low = high < 0 ? -1 : hex_digit(text[1]);

        if (low < 0 || text[2] != (i == CNI_HWADDR_LEN - 1 ? '\0' : separator))
            return -1;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

void cni_hwaddr_format(const uint8_t hwaddr[CNI_HWADDR_LEN], char out[CNI_HWADDR_TEXT])
{
    snprintf(out, CNI_HWADDR_TEXT, "%02x:%02x:%02x:%02x:%02x:%02x", hwaddr[0], hwaddr[1], hwaddr[2], hwaddr[3],
             hwaddr[4], hwaddr[5]);
}

int cni_ip_parse(const char *text, uint8_t out[16])
{
    if (inet_pton(AF_INET, text, out) == 1)
        return 4;
    if (inet_pton(AF_INET6, text, out) != 1)
        return -1;
    if (memcmp(out, v4_mapped, sizeof v4_mapped) != 0)
        return 16;
    memmove(out, out + 12, 4);
    return 4;
}

void cni_ip_format(const uint8_t *ip, size_t length, char out[CNI_IP_TEXT])
{
    if (length == 16 && memcmp(ip, v4_mapped, sizeof v4_mapped) == 0) {
        ip += sizeof v4_mapped;
        length = 4;
    }
    inet_ntop(length == 4 ? AF_INET : AF_INET6, ip, out, CNI_IP_TEXT);
    /* The C library writes ::1.2.3.4 for the long-deprecated v4-compatible addresses. */
    if (length == 16 && strchr(out, '.'))
        snprintf(out, CNI_IP_TEXT, "::%x:%x", ip[12] << 8 | ip[13], ip[14] << 8 | ip[15]);
}
