package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/problem"
)

// Finding is what Env.Doctor has found: a problem and whether guests are offline by it,
// in a word.
type Finding struct {
	problem.Problem
	Impact string `json:"impact"` // offline, partial, risk or note
}

// offline is the impact of which the exit code tells.
const offline = "offline"

func (c *command) doctor(ctx context.Context, _ []string) error {
	conf, ps := config.Load(c.Dirs.Config)
	if fatal := ps.Fatal(); len(fatal) > 0 {
		return fail(ExitError, "%w", fatal)
	}
	// Without the agent the host is examined for a guest that might be.
	var status control.Status
	reply, err := c.Call(ctx, control.Request{Op: "status"})
	if err == nil && reply.Status != nil {
		status = *reply.Status
	}
	found, err := c.Doctor(ctx, status, conf)
	if errors.Is(err, fs.ErrPermission) {
		return fail(ExitError, "%w. Fix: use sudo", err)
	}
	if err != nil {
		return fail(ExitError, "examine the host: %w", err)
	}
	var b strings.Builder
	code := ExitOK
	for _, f := range found {
		fmt.Fprintf(&b, "%-8s%s\n", f.Impact, f.Problem)
		if f.Impact == offline {
			code = ExitError
		}
	}
	if len(found) == 0 {
		b.WriteString("ok: nothing on this host keeps guests offline\n")
	}
	if c.json {
		err = c.printJSON(append([]Finding{}, found...))
	} else {
		err = c.print(b.String())
	}
	if err == nil && code != ExitOK {
		err = &failure{code: code}
	}
	return err
}

// sync has the agent look at once.
func (c *command) sync(ctx context.Context, _ []string) error {
	const limit = 30 * time.Second // whoever calls this waits for it
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := c.ask(ctx, control.Request{Op: "sync"})
	return err
}
