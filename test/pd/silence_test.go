package pd

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/slash32/slash32/test/lab"
)

// pinged is a step during which the internet pings the container that has the prefix,
// ten times a second. The row says for how long there was no answer at most.
func (w *world) pinged(name string, p netip.Prefix, do func() error, check func(levels) error) {
	w.t.Helper()
	log := fmt.Sprintf("/var/log/ping-%d", len(w.rows))
	ping, err := w.Inet.Start(log, "ping", "-6", "-n", "-D", "-i", "0.1", container(p).String())
	must(w.t, err)
	var at []time.Duration
	more := func() {
		w.t.Helper()
		before := len(at)
		must(w.t, lab.Wait(w.ctx, func() error {
			text, err := w.Inet.ReadFile(log)
			if at = answers(text); err == nil && len(at) <= before {
				err = fmt.Errorf("no answer since: %s", text[max(0, len(text)-300):])
			}
			return err
		}))
	}
	more()
	w.step(name, do, check)
	more()
	must(w.t, ping.Signal(syscall.SIGINT))
	var longest time.Duration
	for i := 1; i < len(at); i++ {
		longest = max(longest, at[i]-at[i-1])
	}
	w.rows[len(w.rows)-1].silence = fmt.Sprintf("%.1f s", longest.Seconds())
}

// answers are the times at which ping -D has got one.
func answers(text string) []time.Duration {
	var at []time.Duration
	for line := range strings.Lines(text) {
		stamp, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "] ")
		if s, err := strconv.ParseFloat(stamp, 64); ok && err == nil && strings.Contains(rest, " bytes from ") {
			at = append(at, time.Duration(s*float64(time.Second)))
		}
	}
	return at
}
