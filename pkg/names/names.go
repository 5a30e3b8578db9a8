// Package names says what a valid name is: of a host, a domain, a network in
// the configuration, an interface of the kernel, a portal's URI and
// iPXE.
package names

import "strings"

// Label tells whether s is one label of a host name (RFC 1123 §2.1): letters,
// digits and dashes, at most 63, no dash at either end.
func Label(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

// Domain tells whether s is a domain name of such labels, without a final dot,
// that DNS can carry (RFC 1035 §2.3.4).
func Domain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !Label(l) {
			return false
		}
	}
	return true
}

// Network tells whether s can name a network: a letter or digit, then up to 31
// letters, digits, dots, dashes and underscores.
func Network(s string) bool {
	return len(s) > 0 && len(s) <= 32 && alnum(s[0]) && plain(s)
}

// MaxInterface is the length of the longest name of an interface (IFNAMSIZ
// less the final zero), in bytes.
const MaxInterface = 15

// Interface tells whether s can name an interface: at most MaxInterface
// letters, digits, dots, dashes and underscores. The kernel takes more, but
// such names break paths, sets or shells; "all" and "default" are not
// interfaces in /proc/sys/net.
func Interface(s string) bool {
	switch s {
	case "", ".", "..", "all", "default", "lo":
		return false
	}
	return len(s) <= MaxInterface && s[0] != '-' && plain(s)
}

// Safe tells whether s can be a file's name and a word in a shell's command.
func Safe(s string) bool {
	return len(s) > 0 && len(s) <= 128 && s[0] != '-' && s[0] != '.' && plain(s)
}

func plain(s string) bool {
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '.' && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}

func alnum(c byte) bool {
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')
}

// MaxURI is the longest URI that fits into one DHCPv4 option, in bytes.
const MaxURI = 255

// URI tells whether u can be handed out as the URI of a captive portal's API
// (RFC 8910 §2).
func URI(u string) bool {
	scheme, rest, _ := strings.Cut(u, ":")
	switch scheme {
	case "http", "https":
		host, _, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "/")
		if !strings.HasPrefix(rest, "//") || host == "" {
			return false
		}
	case "urn": // RFC 8910 §2: urn:ietf:params:capport:unrestricted
		if rest == "" {
			return false
		}
	default:
		return false
	}
	return len(u) <= MaxURI && !strings.ContainsFunc(u, func(c rune) bool { return c <= ' ' || c > '~' })
}

// IPXE tells whether a boot file is iPXE itself, by the names under which its
// makers and distributions ship it.
func IPXE(file string) bool {
	name := strings.ToLower(file[strings.LastIndexByte(file, '/')+1:])
	base, extension, _ := strings.Cut(name, ".")
	switch extension {
	case "efi", "pxe", "kpxe", "kkpxe", "kkkpxe", "lkrn":
	default:
		return false
	}
	return base == "undionly" || base == "snp" || base == "snponly" || strings.HasPrefix(base, "ipxe") || strings.HasSuffix(base, "ipxe")
}
