package names_test

import (
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/names"
)

func TestNames(t *testing.T) {
	for _, tc := range []struct {
		what    string
		valid   func(string) bool
		yes, no []string
	}{
		{"label", names.Label, []string{"a", "web1", "Web-1", "9", strings.Repeat("a", 63)},
			[]string{"", "-a", "a-", "a.b", "a_b", "é", strings.Repeat("a", 64)}},
		{"domain", names.Domain, []string{"a", "example.org", "xn--bcher-kva.example"},
			[]string{"", ".", "a.", ".a", "a..b", "a b", strings.Repeat("a.", 130) + "a"}},
		{"network", names.Network, []string{"default", "n1", "a.b-c_d"}, []string{"", "-a", ".a", "a/b", "a b", strings.Repeat("a", 33)}},
		{"interface", names.Interface, []string{"s32-web1", "br0", "eth0.5", "a_b", "123456789012345"},
			[]string{"", ".", "..", "all", "default", "lo", "-a", "a/b", "a b", "a:b", "a%d", "é", "1234567890123456"}},
		{"file", names.Safe, []string{"web1", "a.b-c_d"}, []string{"", ".", "..", ".a", "-a", "a/b", "../a", "a b", "a\x00", "$(x)", strings.Repeat("a", 129)}},
	} {
		for _, s := range tc.yes {
			if !tc.valid(s) {
				t.Errorf("%s: %q refused", tc.what, s)
			}
		}
		for _, s := range tc.no {
			if tc.valid(s) {
				t.Errorf("%s: %q taken", tc.what, s)
			}
		}
	}
}

func TestURI(t *testing.T) {
	for u, want := range map[string]bool{
		"https://portal.example.org/api": true, "http://192.0.2.1:8080": true, "urn:ietf:params:capport:unrestricted": true,
		"": false, "https://": false, "https:///x": false, "https:x": false, "ftp://x": false, "urn:": false, "x": false,
		"https://a b": false, "https://ä": false, "https://" + strings.Repeat("x", names.MaxURI): false,
	} {
		if got := names.URI(u); got != want {
			t.Errorf("URI(%q) = %v", u, got)
		}
	}
}

func TestIPXE(t *testing.T) {
	for file, want := range map[string]bool{
		"undionly.kpxe": true, "a/b/ipxe.efi": true, "http://x/ipxe-x86_64.EFI": true, "snponly.efi": true, "netboot.xyz-ipxe.efi": false, "my-ipxe.pxe": true,
		"boot.ipxe": false, "ipxe": false, "grubx64.efi": false, "pxelinux.0": false, "": false,
	} {
		if got := names.IPXE(file); got != want {
			t.Errorf("IPXE(%q) = %v", file, got)
		}
	}
}
