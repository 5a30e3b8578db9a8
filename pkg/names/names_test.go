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
