package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Console is the serial console of a guest. One command runs at a time.
type Console struct {
	lab  *Lab
	name string
	next atomic.Uint64
}

// Console is the console of the guest of the domain of this name.
func (l *Lab) Console(name string) *Console { return &Console{lab: l, name: name} }

// Log is all that the guest has printed since it was started.
func (c *Console) Log() string {
	s, err := c.lab.HV.ReadFile(consolePath(c.name) + ".log")
	if err != nil {
		return err.Error()
	}
	return s
}

// WaitFor waits until the guest has printed the text: "GUEST ready" is when it
// takes commands, "GUEST bound" when DHCP has given it an address.
func (c *Console) WaitFor(ctx context.Context, text string) error {
	return Wait(ctx, func() error {
		if log := c.Log(); !strings.Contains(log, text) {
			return fmt.Errorf("guest %s has not printed %q but: %s", c.name, text, log)
		}
		return nil
	})
}

// Run waits until the guest is ready, runs a shell command in it and returns
// what it printed. A non-zero exit status is an error with the output.
func (c *Console) Run(ctx context.Context, command string) (string, error) {
	if err := c.WaitFor(ctx, "GUEST ready"); err != nil {
		return "", err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.lab.HV.Path(consolePath(c.name)+".sock"))
	if err != nil {
		return "", fmt.Errorf("open the console of %s: %w", c.name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	id := strconv.FormatUint(uint64(time.Now().UnixNano())+c.next.Add(1), 36)
	if _, err := fmt.Fprintf(conn, "%s %s\n", id, command); err != nil {
		return "", fmt.Errorf("write to the console of %s: %w", c.name, err)
	}
	var out strings.Builder
	begun := false
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return out.String(), fmt.Errorf("guest %s$ %s: %w after %q", c.name, command, err, out.String())
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if m := answerEnd.FindStringSubmatch(line); m != nil && m[1] == id {
			if m[2] != "0" {
				return out.String(), fmt.Errorf("guest %s$ %s: exit status %s: %s", c.name, command, m[2], out.String())
			}
			return out.String(), nil
		}
		if begun {
			out.WriteString(line + "\n")
		}
		begun = begun || line == "<"+id+">"
	}
}

var answerEnd = regexp.MustCompile(`</([0-9a-z]+) (\d+)>$`)
