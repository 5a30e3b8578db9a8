package kernel_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/intent"
)

// listen opens a socket of the test's namespace.
func listen(t *testing.T, network, address string) io.Closer {
	t.Helper()
	var c io.Closer
	var err error
	if strings.HasPrefix(network, "tcp") {
		c, err = net.Listen(network, address)
	} else {
		c, err = net.ListenPacket(network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestListeners(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	list := func() string {
		t.Helper()
		got, err := k.Listeners(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, func(a, b intent.Listener) int {
			return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.Addr.Compare(b.Addr))
		})
		var lines []string
		for _, l := range got {
			lines = append(lines, strings.TrimSpace(fmt.Sprint(l.Proto, " ", l.Addr, map[bool]string{true: " both"}[l.Both])))
		}
		return strings.Join(lines, "\n")
	}
	if got := list(); got != "" {
		t.Errorf("nobody listens, and there is:\n%s", got)
	}
	listen(t, "tcp4", "0.0.0.0:22")
	listen(t, "tcp6", "[::]:22") // Go makes it IPv6 only
	listen(t, "tcp", ":80")      // and this one for both
	listen(t, "tcp4", "192.0.2.10:443")
	listen(t, "udp4", "127.0.0.1:53")
	listen(t, "udp", ":123")
	// Connections are none: of either end, TCP or UDP.
	a, err := net.Dial("tcp4", "192.0.2.10:443")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := net.Dial("udp4", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const want = `6 0.0.0.0:22
6 192.0.2.10:443
6 [::]:22
6 [::]:80 both
17 127.0.0.1:53
17 [::]:123 both`
	if got := list(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	// From whatever thread, it is the Kernel's namespace that is asked.
	done := make(chan string)
	go func() { done <- list() }()
	if got := <-done; got != want {
		t.Errorf("from another thread:\n%s", got)
	}
}
