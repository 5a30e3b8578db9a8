package problem_test

import (
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/problem"
)

func TestNearest(t *testing.T) {
	known := []string{"hostname", "ipv4", "ipv6", "mtu", "search"}
	for word, want := range map[string]string{
		"ip4": "ipv4", "IPv4": "ipv4", "hostnmae": "hostname", "mut": "mtu", "serach": "search",
		"colour": "", "": "", strings.Repeat("i", 1000): "",
	} {
		if got := problem.Nearest(word, known); got != want {
			t.Errorf("Nearest(%.20q) = %q, want %q", word, got, want)
		}
	}
}

func TestQuoteIsBounded(t *testing.T) {
	if got := problem.Quote("a\nb"); got != `"a\nb"` {
		t.Errorf("got %s", got)
	}
	if got := problem.Quote(strings.Repeat("é", 5000)); len(got) > 120 {
		t.Errorf("%d bytes", len(got))
	}
}
