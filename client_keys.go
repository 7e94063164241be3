// client_keys.go decides whose certificate is trusted, remembers those that a person
// has said yes to, and makes and loads the key that logs in. It is apart from
// client_host.go because it is a trust room: whoever reviews what makes a client send
// a password to a stranger reads this page alone. It knows neither frames nor verbs
// but keygen, its own.

package main

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	// maxKnownHosts bounds what is read of known_hosts: a line has some 90 bytes.
	maxKnownHosts = 1 << 20

	// maxKeyComment is ub-common-name, RFC 5280 appendix A.1.
	maxKeyComment = 64

	// trustTries is how often somebody who says neither yes nor no is asked.
	trustTries = 3

	keyFileName   = "id.pem"
	knownHostName = "known_hosts"
)

// --- whose certificate is trusted ---

// tlsConfig is for one handshake with the box. The handshake itself accepts any
// certificate: whoever dials calls checkCertificate behind it and sends nothing before
// that has agreed. It is not done by VerifyConnection, since a person may be asked, for
// longer than any handshake may take.
//
//go:noinline
func (h *hostSpec) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12, // RFC 8996
		ServerName:         h.serverName,
		NextProtos:         []string{tlsProtoFrames},
		InsecureSkipVerify: true, // see above
	}
	if h.certificate != nil {
		cfg.Certificates = []tls.Certificate{*h.certificate}
	}
	return cfg, nil
}

// checkCertificate tells whether the box at the other end is the one that is meant. The
// first of these that applies decides:
//
//   - the fingerprint that --fingerprint or config.toml gives
//   - the authority that --ca or config.toml gives
//   - loopback, where nothing but the server asks for TLS: any will do
//   - what known_hosts remembers of this host and port
//   - the system's authorities, for the host's name; nothing is remembered then
//   - whoever sits at the terminal, and known_hosts remembers the answer
//
// It may wait for a person: let no deadline run. The error is a connError.
func (h *hostSpec) checkCertificate(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return distrust(nil, "%s shows no certificate", h.name)
	}
	offered := fingerprintOf(cs.PeerCertificates[0].Raw)
	if h.fingerprint != "" {
		if offered == h.fingerprint {
			return nil
		}
		return distrust(nil, "%s has certificate %s, and %s says %s; somebody may be in between: compare with the fingerprint in berth's log there",
			h.name, offered, h.said, h.fingerprint)
	}
	if h.ca != "" {
		return h.checkAuthority(cs)
	}
	if h.mayFallBack {
		return nil // it would have been plain, had the server let it: there is nobody in between
	}
	pins, err := readPins(h.pin)
	if err != nil {
		return distrust(err, "%v", err)
	}
	if h.trusted != "" {
		pins = append(pins, knownPin{fingerprint: h.trusted})
	}
	if len(pins) > 0 {
		if slices.ContainsFunc(pins, func(p knownPin) bool { return p.fingerprint == offered }) {
			return nil
		}
		return h.changed(offered, pins)
	}
	if _, err := verifyChain(cs, h.serverName, nil); err == nil {
		return nil
	}
	return h.firstUse(offered)
}

// distrust ends the connection: exit code 3.
//
//go:noinline
func distrust(err error, format string, args ...any) error {
	return &connError{fmt.Sprintf(format, args...), err}
}

// verifyChain is what a handshake does that verifies; roots nil are the system's.
func verifyChain(cs tls.ConnectionState, name string, roots *x509.CertPool) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	return cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between})
}

// checkAuthority: the certificate is in the file itself, as berth's own may be, or one
// of the file's has signed it for this host.
func (h *hostSpec) checkAuthority(cs tls.ConnectionState) error {
	roots, all, err := readAuthorities(h.ca)
	if err != nil {
		return err
	}
	leaf := cs.PeerCertificates[0]
	if slices.ContainsFunc(all, leaf.Equal) {
		return nil
	}
	_, err = verifyChain(cs, h.serverName, roots)
	if err == nil {
		return nil
	}
	what := "its certificate " + fingerprintOf(leaf.Raw) + " is not signed by any in " + shownText(h.ca)
	var expired x509.CertificateInvalidError
	switch {
	case errors.As(err, new(x509.HostnameError)):
		what = "its certificate is for " + shownText(namesOf(leaf)) + "; connect by such a name, or use --fingerprint " + fingerprintOf(leaf.Raw)
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		what = "its certificate was valid from " + leaf.NotBefore.Format(time.DateOnly) + " to " + leaf.NotAfter.Format(time.DateOnly) + "; look at the clocks, or have it renewed"
	}
	return distrust(err, "%s is not trusted: %s", h.name, what)
}

func namesOf(c *x509.Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, a := range c.IPAddresses {
		names = append(names, a.String())
	}
	if len(names) == 0 {
		return "no host at all"
	}
	return strings.Join(names, ", ")
}

// readAuthorities reads the PEM certificates of a file; errors are of exit code 2.
func readAuthorities(file string) (*x509.CertPool, []*x509.Certificate, error) {
	data, err := readConfigBytes(file, maxPEMFile)
	if err != nil {
		return nil, nil, usageErr("certificates in %s: %v; name a readable PEM file", shownText(file), err)
	}
	pool := x509.NewCertPool()
	var all []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, usageErr("certificates in %s: %v", shownText(file), err)
		}
		pool.AddCert(c)
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, nil, usageErr("%s has no certificate in it; name a file with PEM certificates", shownText(file))
	}
	return pool, all, nil
}

// logHint is where to compare a fingerprint: not through the same network.
const logHint = `On the box, "journalctl -u berth | grep fingerprint" shows the right one.`

// firstUse asks whether a certificate that nobody has heard of is the box's.
func (h *hostSpec) firstUse(offered string) error {
	prompt := fmt.Sprintf("%s (%s) is not known here. Its certificate is\n  %s\n%s\nIs it the same? (yes, no, or the fingerprint) ",
		h.name, shownText(h.address), offered, logHint)
	for range trustTries {
		answer, err := h.ask(prompt, true)
		if errors.Is(err, errNoTerminal) {
			return distrust(err, "%s is not known, and there is no terminal to ask on; compare with berth's log there and add --fingerprint %s, or connect once from a terminal", h.name, offered)
		}
		if err != nil {
			return err
		}
		answer = strings.TrimSpace(answer)
		given, notOne := normalFingerprint(answer)
		switch {
		case strings.EqualFold(answer, "yes") || given == offered:
			h.remember(offered)
			return nil
		case strings.EqualFold(answer, "no"):
			return distrust(nil, "%s is not trusted, and was sent nothing", h.name)
		case notOne == nil:
			return distrust(nil, "%s has certificate %s and not the one that was typed: somebody may be in between; it was sent nothing", h.name, offered)
		}
		prompt = "Type yes, no, or the fingerprint: "
	}
	return distrust(nil, "%s is not trusted, and was sent nothing", h.name)
}

// remember is for this run in any case, and for the next ones if it can be written.
func (h *hostSpec) remember(fingerprint string) {
	h.trusted = fingerprint
	file, err := addPin(h.pin, fingerprint)
	if err != nil {
		h.notice(fmt.Sprintf("the certificate of %s cannot be remembered: %v", h.name, err))
		return
	}
	h.notice("remembered in " + shownText(file))
}

// changed is loud: what it tells of is either somebody's work on the box or an attack,
// and only a person can know which.
func (h *hostSpec) changed(offered string, pins []knownPin) error {
	var b builder
	fmt.Fprintf(&b, "THE CERTIFICATE OF %s HAS CHANGED, and nothing was sent\n", h.name)
	for _, p := range pins {
		fmt.Fprintf(&b, "  known   %s", p.fingerprint)
		if p.line > 0 {
			fmt.Fprintf(&b, "  (%s:%d)", shownText(p.file), p.line)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  now     %s\n", offered)
	b.WriteString("Either the box was given a new certificate, or somebody stands between you and it and\n")
	b.WriteString("waits for your password. Ask whoever looks after the box, and compare what is now:\n")
	b.WriteString("  " + logHint + "\n")
	fmt.Fprintf(&b, "If it is the right one: berth keygen -R %s", shellWord(pinWord(h.pin)))
	return &connError{b.String(), nil}
}

// --- known_hosts ---

// A knownPin is a line of known_hosts: "[box]:2121 sha256:HEX", perhaps with more behind it.
type knownPin struct {
	host, fingerprint string
	file              string
	line              int
}

// knownHosts is the file's name, "" if there is no place for one.
func knownHosts() string {
	if dir := hostDir(); dir != "" {
		return joinPath(dir, knownHostName)
	}
	return ""
}

// pinHost is a host as pins name it: one spelling for each, without brackets.
func pinHost(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// pinWord is a pin as keygen -R takes it, in the shortest way.
func pinWord(pin string) string {
	if host, port, err := net.SplitHostPort(pin); err == nil && port == defaultPort {
		return host
	}
	return pin
}

// readPins is what is remembered of host, none if nothing is. A line for host that is
// not understood is an error: to pass it over would be to forget.
func readPins(host string) ([]knownPin, error) {
	file := knownHosts()
	if file == "" {
		return nil, nil
	}
	data, err := readConfigBytes(file, maxKnownHosts)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, errorf("%s: %w; make it readable", shownText(file), err)
	}
	return parsePins(file, data, func(h string) bool { return h == host })
}

// parsePins is the pins of the hosts that want names.
func parsePins(file string, data []byte, want func(host string) bool) ([]knownPin, error) {
	var pins []knownPin
	for i, text := range strings.Split(string(data), "\n") {
		words := strings.Fields(text)
		if len(words) == 0 || words[0][0] == '#' || !want(strings.ToLower(words[0])) {
			continue
		}
		p := knownPin{host: strings.ToLower(words[0]), file: file, line: i + 1}
		var err error
		if p.fingerprint, err = normalFingerprint(strings.Join(words[1:min(2, len(words))], "")); err != nil {
			return nil, errorf("%s:%d: %w, or remove the line", shownText(file), p.line, err)
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// lockHosts makes the directory where it is missing and keeps other berths from
// writing there until unlock is called. It is not known_hosts itself that is locked:
// that file is replaced.
func lockHosts() (unlock func(), err error) {
	dir := hostDir()
	if dir == "" {
		return nil, newError("HOME is not set, so there is no place for it")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, errorf("lock %s: %w", shownText(dir), err)
	}
	return func() { d.Close() }, nil
}

// addPin adds a line to known_hosts, in one write, and returns the file's name. If
// another berth has remembered something else of host meanwhile, that is an error.
func addPin(host, fingerprint string) (string, error) {
	unlock, err := lockHosts()
	if err != nil {
		return "", err
	}
	defer unlock()
	file := knownHosts()
	pins, err := readPins(host)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(pins, func(p knownPin) bool { return p.fingerprint == fingerprint }) {
		return file, nil
	}
	if len(pins) > 0 {
		return "", errorf("another one is remembered already, in %s:%d", shownText(file), pins[0].line)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line := host + " " + fingerprint + "\n"
	if st, err := f.Stat(); err != nil {
		return "", err
	} else if size := st.Size(); size > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], size-1); err != nil {
			return "", err
		}
		if last[0] != '\n' { // an editor's
			line = "\n" + line
		}
	}
	if _, err := f.WriteString(line); err != nil {
		return "", err
	}
	return file, f.Close()
}

// removePins forgets what is remembered of word: a host, an alias of config.toml or
// "[host]:port". Without a port it is every port. All other lines stay as they are.
func removePins(word string) (file string, removed []knownPin, err error) {
	hosts, err := loadHosts()
	if err != nil {
		return "", nil, err
	}
	name, port := splitPin(word)
	names := []string{pinHost(name)}
	if c := hosts.Hosts[name]; c.Host != "" {
		names = append(names, pinHost(strings.TrimSuffix(strings.TrimPrefix(c.Host, "["), "]")))
	}
	unlock, err := lockHosts()
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	if file, err = filepath.EvalSymlinks(knownHosts()); err != nil { // a link stays one
		if errors.Is(err, fs.ErrNotExist) {
			return knownHosts(), nil, nil
		}
		return "", nil, err
	}
	data, err := readConfigBytes(file, maxKnownHosts)
	if err != nil {
		return "", nil, errorf("%s: %w", shownText(file), err)
	}
	var kept []byte
	number := 0
	for line := range bytes.Lines(data) {
		number++
		words := strings.Fields(string(line))
		if len(words) > 0 && words[0][0] != '#' {
			if h, p := splitPin(words[0]); inList(names, pinHost(h)) && (port == "" || p == port) {
				removed = append(removed, knownPin{host: words[0], fingerprint: strings.Join(words[1:min(2, len(words))], ""), file: file, line: number})
				continue
			}
		}
		kept = append(kept, line...)
	}
	if len(removed) == 0 {
		return file, nil, nil
	}
	return file, removed, replaceFile(file, kept)
}

// splitPin takes what people type for a host, with user, brackets, colon or port or not.
func splitPin(word string) (host, port string) {
	word = word[strings.LastIndexByte(word, '@')+1:]
	if isBareIPv6(word) {
		return word, ""
	}
	if host, port, err := net.SplitHostPort(word); err == nil {
		return host, port
	}
	return strings.TrimSuffix(strings.TrimPrefix(word, "["), "]"), ""
}

// replaceFile writes a file that nobody else may read, whole or not at all.
func replaceFile(name string, text []byte) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+"-"+rand.Text())
	err := tlsWriteSynced(tmp, text, 0o600)
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return tlsSyncDirectory(filepath.Dir(name))
}

// --- the key that logs in ---

// loadKey loads the key that was named, or the one that keygen has made, if there is.
// One that others can read is refused, as ssh does it: they may have copied it.
func (h *hostSpec) loadKey() error {
	file, named := h.keyFile, h.keyFile != ""
	if !named {
		dir := hostDir()
		if dir == "" {
			return nil
		}
		file = joinPath(dir, keyFileName)
	}
	pair, err := readKey(file)
	if err != nil {
		if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
			return nil
		}
		if named && errors.Is(err, fs.ErrNotExist) {
			return usageErr("there is no key %s; make one with berth keygen -f %s", shownText(file), shellWord(file))
		}
		return usageErr("key %s: %v", shownText(file), err)
	}
	h.keyFile, h.certificate = file, pair
	return nil
}

// readKey reads a private key and its certificate, which are in one PEM file.
func readKey(file string) (*tls.Certificate, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return nil, err
	}
	// A file of somebody else's, as root's with a group that may read, is their affair.
	if int(st.Uid) == os.Geteuid() && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o077 != 0 {
		return nil, errorf("others can read it (mode %04o); if nobody did, chmod 600 %s", st.Mode&0o7777, shellWord(file))
	}
	data, err := readConfigBytes(file, maxPEMFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, errorf("%s; it has to hold a PEM key and its certificate, as berth keygen writes them", strings.TrimPrefix(err.Error(), "tls: "))
	}
	return &pair, nil
}

// keygenOptions are the options of berth keygen.
type keygenOptions struct {
	file    string // "": id.pem in the client's directory
	comment string // "": user@machine
	remove  string // make no key, but forget this host
	force   bool   // replace the key that is there
	quiet   bool   // print nothing but the fingerprint, or with remove nothing
}

// runKeygen is berth keygen.
func runKeygen(inv *invocation) error {
	return keygen(keygenOptions{
		file: inv.str("file"), comment: inv.str("comment"), remove: inv.str("remove"), force: inv.on("force"), quiet: inv.on("quiet"),
	}, inv.stdout)
}

// keygen makes a key with its certificate, and prints what to do with it; or forgets
// the certificate of a box. A key that is there is never touched unless force says so.
func keygen(o keygenOptions, stdout io.Writer) error {
	if o.remove != "" {
		if o.file != "" || o.comment != "" || o.force {
			return usageErr("-R makes no key; leave out -f, -C and --force")
		}
		return forget(o.remove, o.quiet, stdout)
	}
	if len(o.comment) > maxKeyComment || strings.ContainsFunc(o.comment, unicode.IsControl) {
		return usageErr("the comment has to be one line of at most %d bytes", maxKeyComment)
	}
	file := o.file
	if file == "" {
		dir := hostDir()
		if dir == "" {
			return usageErr("HOME is not set, so there is no place for a key; name one with -f FILE")
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		file = joinPath(dir, keyFileName)
	}
	if _, err := os.Lstat(file); err == nil && !o.force {
		return keyExists(file)
	}
	text, der, err := makeKey(cmp.Or(o.comment, keyComment()))
	if err != nil {
		return errorf("make a key: %w", err)
	}
	if o.force {
		err = replaceFile(file, text)
	} else if err = tlsWriteSynced(file, text, 0o600); errors.Is(err, fs.ErrExist) {
		return keyExists(file)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		os.Remove(file) // half a key is none, and it was not there before
	}
	if err != nil {
		return errorf("write the key: %w", err)
	}
	fp := fingerprintOf(der)
	if o.quiet {
		_, err = fmt.Fprintln(stdout, fp)
		return err
	}
	use := ""
	if o.file != "" {
		use = fmt.Sprintf("Use it with --key %s, or with key = %s in %s.\n", shellWord(file), strconv.Quote(file), configFileHint)
	}
	_, err = fmt.Fprintf(stdout, `The key is in %s. Whoever has that file can log in with it.
%s
On the box, as root, NAME being your user there:

  berth user set NAME --certificate %s

It takes the place of the user's other certificates; by hand, in NAME.toml, there may be several:

  certificates = [%q]
`, shownText(file), use, fp, fp)
	return err
}

func keyExists(file string) error {
	what := ""
	if pair, err := readKey(file); err == nil {
		what = "; its fingerprint is " + fingerprintOf(pair.Certificate[0])
	}
	return errorf("%s is there already%s; use it, or make another with -f FILE, or replace it with --force", shownText(file), what)
}

func forget(word string, quiet bool, stdout io.Writer) error {
	file, removed, err := removePins(word)
	if err != nil {
		return err
	}
	if len(removed) == 0 {
		return errorf("%s does not know %s; nothing to forget", shownText(file), shownText(word))
	}
	for _, p := range removed {
		if !quiet {
			fmt.Fprintf(stdout, "forgot %s %s, line %d of %s\n", shownText(p.host), shownText(p.fingerprint), p.line, shownText(file))
		}
	}
	return nil
}

// keyComment is user@machine, as far as they are known and fit.
func keyComment() string {
	host, _ := os.Hostname()
	name := cmp.Or(os.Getenv("USER"), os.Getenv("LOGNAME"), passwdName(os.Getuid()), "berth")
	if host != "" {
		name += "@" + host
	}
	return strings.ToValidUTF8(name[:min(len(name), maxKeyComment)], "")
}

// makeKey makes an ECDSA P-256 key, which TLS 1.2 and 1.3 both know everywhere, and a
// self-signed certificate, as one PEM text and as the certificate's DER.
func makeKey(comment string) (text, der []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), tlsSerialBits))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // never zero
		Subject:      pkix.Name{CommonName: comment},
		NotBefore:    tlsEpoch(),
		// RFC 5280 section 4.1.2.5: the date of what has no end. Taking the
		// fingerprint out of the user's file is what ends it.
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err = x509.CreateCertificate(rand.Reader, t, t, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), der, nil
}

// shellWord is s as a shell reads it back, for commands in messages.
func shellWord(s string) string {
	if s == "" {
		return "''"
	}
	return shellQuote(shownText(s))
}
