// The cost of frames beside berth's own FTP, and of a command beside ssh: one
// server, one client, rounds in turn, medians. The figures are ratios; nothing
// passes or fails by them.
//
//	go test -run '^$' -bench Frames -benchtime 5x .
//	BERTH_BENCH_SSH='-F none -p 22 -o ControlPath=/run/me/cm box' go test -run '^$' -bench Commands -benchtime 30x .
//
// BERTH_BENCH_DIR says where the files lie, which is best a tmpfs; BERTH_BENCH_SSH
// is a host to which ssh has a shared connection (ControlMaster) already.

package main

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	benchSize  = 1 << 30
	benchFiles = 2000
	benchSmall = 4096
)

// benchBox is a real server in a process of its own.
type benchBox struct {
	b    *testing.B
	addr string
	tls  *tls.Config
}

func newBenchBox(b *testing.B) *benchBox {
	b.Helper()
	dir := os.Getenv("BERTH_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	} else {
		dir = filepath.Join(dir, "berth-bench")
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	users := filepath.Join(dir, "users.d")
	if err := os.MkdirAll(users, 0o700); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	conf := filepath.Join(dir, "berth.toml")
	text := fmt.Sprintf("server.state_dir = %q\nserver.users_dir = %q\nlisten.control = [%q]\nlisten.datagram = []\nlisten.local = []\nlisten.http = []\n"+
		"transfer.durable = false\nexec.output = \"0\"\n", filepath.Join(dir, "state"), users, addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	hash, err := hashPassword("secret")
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(users, "ann.toml"), fmt.Appendf(nil, "password = %q\nshell = true\n", hash), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "serve", "--config", conf)
	cmd.Env = append(os.Environ(), asBerth+"=1")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return &benchBox{b: b, addr: addr, tls: &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(8)}}
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("no answer")
	return nil
}

// benchClient is a connection that has logged in.
type benchClient struct {
	box  *benchBox
	conn net.Conn
	r    *bufio.Reader
	tls  bool
	buf  []byte
}

func (x *benchBox) dial(overTLS, frames bool) *benchClient {
	conn, err := net.Dial("tcp", x.addr)
	x.must(err)
	x.b.Cleanup(func() { conn.Close() })
	c := &benchClient{box: x, conn: conn, r: bufio.NewReaderSize(conn, 64<<10), tls: overTLS, buf: make([]byte, maxFrame)}
	c.line()
	if overTLS {
		c.cmd("AUTH TLS")
		c.conn = tls.Client(conn, x.tls)
		c.r = bufio.NewReaderSize(c.conn, 64<<10)
	}
	c.cmd("USER ann")
	c.cmd("PASS secret")
	if overTLS {
		c.cmd("PBSZ 0")
		c.cmd("PROT P")
	}
	c.cmd("TYPE I")
	if frames {
		c.cmd("FRAM 1")
	}
	return c
}

func (x *benchBox) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (c *benchClient) line() string {
	s, err := c.r.ReadString('\n')
	c.box.must(err)
	return s
}

func (c *benchClient) cmd(s string) string {
	fmt.Fprintf(c.conn, "%s\r\n", s)
	return c.line()
}

var benchPort = regexp.MustCompile(`\|\|\|(\d+)\|`)

func (c *benchClient) data(verb string) net.Conn {
	d, err := net.Dial("tcp", "127.0.0.1:"+benchPort.FindStringSubmatch(c.cmd("EPSV"))[1])
	c.box.must(err)
	c.cmd(verb)
	if c.tls {
		return tls.Client(d, c.box.tls)
	}
	return d
}

func (c *benchClient) done() {
	if got := c.line(); !strings.HasPrefix(got, "226") {
		panic(got)
	}
}

func (c *benchClient) retr(name string, size int64) {
	d := c.data("RETR " + name)
	got := int64(0)
	for {
		n, err := d.Read(c.buf)
		got += int64(n)
		if err != nil {
			break
		}
	}
	d.Close()
	if c.done(); got != size {
		panic(got)
	}
}

func (c *benchClient) stor(name string, block []byte, size int64) {
	d := c.data("STOR " + name)
	for sent := int64(0); sent < size; sent += int64(len(block)) {
		_, err := d.Write(block)
		c.box.must(err)
	}
	d.Close()
	c.done()
}

func (c *benchClient) request(format string, args ...any) {
	_, err := c.conn.Write(appendFrame(nil, frameRequest, fmt.Appendf(nil, format, args...)))
	c.box.must(err)
}

// final reads until the final answer; first is when the first data came.
func (c *benchClient) final() (data int64, first time.Time) {
	for {
		t, p, err := readFrame(c.r, c.buf)
		c.box.must(err)
		switch t {
		case frameData:
			if data == 0 {
				first = time.Now()
			}
			data += int64(len(p))
		case frameAnswer:
			var a answer
			c.box.must(json.Unmarshal(p, &a))
			if a.Code >= 300 {
				panic(string(p))
			}
			if a.Code >= 200 {
				return data, first
			}
		}
	}
}

func (c *benchClient) get(name string, size int64, more string) {
	c.request(`{"do":"get","path":%q%s}`, name, more)
	if n, _ := c.final(); n != size {
		panic(n)
	}
}

func (c *benchClient) put(name string, block []byte, size int64, more string) {
	c.request(`{"do":"put","path":%q,"size":%d%s}`, name, size, more)
	frame := appendFrame(nil, frameData, block)
	for sent := int64(0); sent < size; sent += int64(len(block)) {
		_, err := c.conn.Write(frame)
		c.box.must(err)
	}
	_, err := c.conn.Write(appendFrame(nil, frameEnd, fmt.Appendf(nil, `{"size":%d}`, size)))
	c.box.must(err)
	c.final()
}

// pipelined sends all requests and then reads all answers.
func (c *benchClient) pipelined(write func(w *bufio.Writer, i int)) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range benchFiles {
			c.final()
		}
	}()
	w := bufio.NewWriterSize(c.conn, 64<<10)
	for i := range benchFiles {
		write(w, i)
	}
	c.box.must(w.Flush())
	<-over
}

// benchRounds keeps what each thing took.
type benchRounds map[string][]float64

func (r benchRounds) time(name string, do func()) {
	began := time.Now()
	do()
	r[name] = append(r[name], time.Since(began).Seconds())
}

func (r benchRounds) median(name string) float64 {
	s := slices.Sorted(slices.Values(r[name]))
	return s[len(s)/2]
}

func BenchmarkFramesLarge(b *testing.B) {
	for _, overTLS := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "tls"}[overTLS], func(b *testing.B) {
			x := newBenchBox(b)
			ftp, frames := x.dial(overTLS, false), x.dial(overTLS, true)
			block := make([]byte, maxFrame)
			r := benchRounds{}
			for b.Loop() {
				r.time("STOR", func() { ftp.stor("x", block, benchSize) })
				r.time("put", func() { frames.put("y", block, benchSize, "") })
				r.time("put-none", func() { frames.put("x", block, benchSize, `,"sha256":"none"`) })
				r.time("RETR", func() { ftp.retr("y", benchSize) })
				r.time("get", func() { frames.get("y", benchSize, "") })
				r.time("get-none", func() { frames.get("x", benchSize, `,"sha256":"none"`) })
				r.time("get-first", func() { frames.get("x", benchSize, "") }) // its digest is not known yet
			}
			mb := func(name string) float64 { return benchSize / 1e6 / r.median(name) }
			b.ReportMetric(mb("STOR"), "STOR-MB/s")
			b.ReportMetric(mb("RETR"), "RETR-MB/s")
			b.ReportMetric(mb("put")/mb("STOR"), "put/STOR")
			b.ReportMetric(mb("put-none")/mb("STOR"), "put-none/STOR")
			b.ReportMetric(mb("get")/mb("RETR"), "get/RETR")
			b.ReportMetric(mb("get-none")/mb("RETR"), "get-none/RETR")
			b.ReportMetric(mb("get-first")/mb("RETR"), "get-first/RETR")
		})
	}
}

func BenchmarkFramesSmall(b *testing.B) {
	x := newBenchBox(b)
	ftp, frames := x.dial(false, false), x.dial(false, true)
	block := make([]byte, benchSmall)
	sum := sha256.Sum256(block)
	r := benchRounds{}
	for b.Loop() {
		r.time("STOR", func() {
			for i := range benchFiles {
				ftp.stor(fmt.Sprintf("a%d", i), block, benchSmall)
			}
		})
		r.time("put", func() {
			frames.pipelined(func(w *bufio.Writer, i int) {
				w.Write(appendFrame(nil, frameRequest, fmt.Appendf(nil, `{"do":"put","path":"b%d","size":%d,"sha256":"%x"}`, i, benchSmall, sum)))
				w.Write(appendFrame(nil, frameData, block))
				w.Write(appendFrame(nil, frameEnd, nil))
			})
		})
		r.time("RETR", func() {
			for i := range benchFiles {
				ftp.retr(fmt.Sprintf("a%d", i), benchSmall)
			}
		})
		r.time("get", func() {
			frames.pipelined(func(w *bufio.Writer, i int) {
				w.Write(appendFrame(nil, frameRequest, fmt.Appendf(nil, `{"do":"get","path":"b%d"}`, i)))
			})
		})
		for i := range benchFiles {
			ftp.cmd(fmt.Sprintf("DELE a%d", i))
			ftp.cmd(fmt.Sprintf("DELE b%d", i))
		}
	}
	for _, name := range []string{"STOR", "RETR"} {
		b.ReportMetric(benchFiles/r.median(name), name+"s/s")
	}
	b.ReportMetric(r.median("STOR")/r.median("put"), "put/STOR")
	b.ReportMetric(r.median("RETR")/r.median("get"), "get/RETR")
}

func BenchmarkCommands(b *testing.B) {
	ssh := strings.Fields(os.Getenv("BERTH_BENCH_SSH"))
	if len(ssh) == 0 {
		b.Skip("BERTH_BENCH_SSH names no ssh host")
	}
	c := newBenchBox(b).dial(false, true)
	r := benchRounds{}
	run := func(name, line string) {
		r.time("ssh-"+name+"-all", func() {
			cmd := exec.Command("ssh", append(slices.Clone(ssh), line)...)
			out, err := cmd.StdoutPipe()
			c.box.must(err)
			began := time.Now()
			c.box.must(cmd.Start())
			_, err = io.ReadFull(out, make([]byte, 1))
			c.box.must(err)
			r["ssh-"+name] = append(r["ssh-"+name], time.Since(began).Seconds())
			io.Copy(io.Discard, out)
			c.box.must(cmd.Wait())
		})
		r.time(name+"-all", func() {
			began := time.Now()
			c.request(`{"do":"exec","shell":%q}`, line)
			_, first := c.final()
			r[name] = append(r[name], first.Sub(began).Seconds())
		})
	}
	for b.Loop() {
		run("echo", "echo hi")
		run("lines", "seq 100000")
	}
	b.ReportMetric(r.median("ssh-echo")*1e3, "ssh-first-ms")
	b.ReportMetric(r.median("echo")*1e3, "first-ms")
	b.ReportMetric(r.median("echo")/r.median("ssh-echo"), "first/ssh")
	b.ReportMetric(r.median("lines-all")/r.median("ssh-lines-all"), "lines/ssh")
}
