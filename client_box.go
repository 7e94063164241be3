// client_box.go is how a client verb comes to its connections: which server it means,
// the login, more connections when they are wanted, and the frame around each verb:
// signals, memory and the end. It is apart from client.go, which is one connection
// and knows nothing of people.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// clientMemory is where the collector begins to work harder; the promise is 40 MiB
	// resident, of which the program's own pages are some 12.
	clientMemory = 24 << 20
	// passwordTries is how often a prompt is repeated, as ssh does it.
	passwordTries = 3
)

// --- a box, with as many connections as are wanted ---

// A box is a server as the running verb knows it. What was asked of a person, a
// password or whether to trust a certificate, is asked once.
type box struct {
	spec    *hostSpec
	silence time.Duration
	ctx     context.Context

	mu       mutex   // one login at a time
	password *string // that was good

	fmu   mutex // one first connection at a time; before mu
	first *remote
}

// connect makes another connection and logs in.
func (b *box) connect() (*remote, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := dialRemote(b.ctx, b.spec, b.silence, b.login)
	if refusedFor(err, "tls_required") && b.spec.mayFallBack && !b.spec.tls {
		b.spec.tls = true // loopback, and the box wants it all the same
		c, err = dialRemote(b.ctx, b.spec, b.silence, b.login)
	}
	return c, err
}

// main is the connection that is there anyway.
func (b *box) main() (*remote, error) {
	b.fmu.Lock()
	defer b.fmu.Unlock()
	if b.first != nil && b.first.broken() == nil {
		return b.first, nil
	}
	c, err := b.connect()
	if err == nil {
		b.first = c
	}
	return c, err
}

// another is a connection beside main's; the first one, if that was lost.
func (b *box) another() (*remote, error) {
	b.fmu.Lock()
	lost := b.first == nil || b.first.broken() != nil
	b.fmu.Unlock()
	if lost {
		return b.main()
	}
	return b.connect()
}

// release ends a connection that another has made.
func (b *box) release(c *remote) {
	b.fmu.Lock()
	mine := c == b.first
	b.fmu.Unlock()
	if !mine {
		c.close()
	}
}

// met tells whether there was a connection.
func (b *box) met() bool {
	b.fmu.Lock()
	defer b.fmu.Unlock()
	return b.first != nil
}

func (b *box) close() {
	if b.met() {
		b.first.close()
	}
}

// login finds a way in: by what the connection itself proves, by a password that
// was good before, or by those that client_host.go finds.
func (b *box) login(c *remote) error {
	try := func(password *string) error {
		q := remoteRequest{Do: "login", User: b.spec.user, Password: password}
		if password == nil && !b.spec.userSaid {
			q.User = "" // whoever the key or the socket says
		}
		a, err := c.do(q)
		if err != nil {
			return err
		}
		c.welcome = *a
		return nil
	}
	if b.password != nil {
		err := try(b.password)
		if refusedFor(err, "login") {
			b.password = nil // it was changed; the next try finds another
		}
		return err
	}
	if b.spec.proof() {
		err := try(nil)
		if err == nil || !refusedFor(err, "login") {
			return err
		}
	}
	for tries := 1; ; tries++ {
		password, prompted, err := b.spec.nextPassword()
		if err != nil {
			return err
		}
		if err = try(&password); err == nil {
			b.password = &password
			return nil
		}
		if !refusedFor(err, "login") {
			return err
		}
		if !prompted || tries >= passwordTries {
			return &verbError{exitFailed, fmt.Sprintf("%s: user or password is wrong for %s; the box's log has the reason", b.spec.name, shownText(b.spec.user))}
		}
	}
}

// patiently runs do with the connection that is there, and again with another if that
// is lost under it, for as long as --retry allows. do must bear to be begun anew. A
// first connection that cannot be made is an error at once.
func (inv *invocation) patiently(b *box, do func(c *remote) error) error {
	var since time.Time
	for pause := cmp.Or(inv.pause, firstPause); ; pause = min(2*pause, lastPause) {
		c, err := b.main()
		if err == nil {
			err = do(c)
		} else if since.IsZero() {
			return err
		}
		var said *verbError
		if retry := inv.period("retry"); !isConnError(err) || errors.As(err, &said) || retry <= 0 || !since.IsZero() && time.Since(since) > retry {
			return err
		} else if since.IsZero() {
			since = time.Now()
			if !inv.on("quiet") {
				fmt.Fprintf(inv.stderr, "berth %s: %v; trying again, for up to %v\n", inv.verb.name, err, retry)
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-inv.ctx.Done():
			timer.Stop()
			return errInterrupted
		case <-timer.C:
		}
	}
}

// --- client verbs ---

// boundMemory is for a process that is a client and nothing else.
func boundMemory() {
	debug.SetMemoryLimit(clientMemory)
	debug.SetGCPercent(50)
}

// runClient runs a verb of the client with a context that SIGINT, SIGTERM and SIGHUP
// end. A second one ends the program at once.
func runClient(inv *invocation) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	done := make(chan struct{})
	defer close(done)
	if !inv.verb.ownSignals {
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer signal.Stop(signals)
	}
	var code atomic.Int32
	go func() {
		select {
		case s := <-signals:
			code.Store(128 + int32(s.(syscall.Signal)))
			cancel(errInterrupted)
		case <-done:
			return
		}
		select {
		case s := <-signals:
			os.Exit(128 + int(s.(syscall.Signal)))
		case <-done:
		}
	}()
	inv.ctx = ctx
	err := inv.verb.run(inv)
	for _, b := range inv.boxes {
		b.close()
	}
	if err == nil && inv.refused {
		err = exitWith(exitFailed)
	}
	if n := int(code.Load()); n != 0 {
		if err != nil && !errors.Is(err, errInterrupted) && err.Error() != "" {
			return &verbError{n, err.Error()}
		}
		return exitWith(n)
	}
	return err
}

// box is the server that t names, with the verb's options.
func (inv *invocation) box(t target) (*box, error) {
	spec, err := resolveHost(t, hostOptions{port: inv.number("port"), plain: inv.on("plain"), tls: inv.on("tls"), ca: inv.str("ca"),
		fingerprint: inv.str("fingerprint"), passwordFile: inv.str("password-file"), key: inv.str("key")})
	if err != nil {
		return nil, err
	}
	for _, b := range inv.boxes {
		if b.spec.network == spec.network && b.spec.address == spec.address && b.spec.user == spec.user && b.spec.base == spec.base {
			return b, nil
		}
	}
	silence := inv.period("timeout")
	if silence <= 0 {
		silence = defaultSilence
	}
	b := &box{spec: spec, silence: silence, ctx: inv.ctx}
	inv.boxes = append(inv.boxes, b)
	return b, nil
}
