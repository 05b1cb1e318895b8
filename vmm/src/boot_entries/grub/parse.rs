//! From text to statements.

/// Deepest nesting of blocks.
const MAX_DEPTH: usize = 32;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it stands.
    Text {
        /// The text.
        text: String,
        /// Whether it was quoted: quoted text makes a word even when empty, and is never a keyword.
        quoted: bool,
    },
    /// The value of a variable.
    Variable {
        /// Its name.
        name: String,
        /// Whether it stands in double quotes: otherwise its value is split at blanks.
        quoted: bool,
    },
}

/// A word: pieces without a blank between them.
pub type Word = Vec<Piece>;

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A command and its arguments.
    Command(Vec<Word>),
    /// `if`, its `elif`s and its `else`.
    If {
        /// Conditions, each with what to do when it is the first true one.
        arms: Vec<(Vec<Statement>, Vec<Statement>)>,
        /// What to do when none is.
        otherwise: Vec<Statement>,
    },
    /// `menuentry` or `submenu`.
    Menu {
        /// Whether it is a submenu.
        sub: bool,
        /// Title and options.
        arguments: Vec<Word>,
        /// The block.
        body: Vec<Statement>,
    },
    /// A function, which is known but not called, or a loop, which is not run.
    Skipped,
}

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// Blocks are nested too deep.
    #[error("blocks are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// A block is not closed.
    #[error("`{0}` is missing at the end")]
    Open(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    End,
}

/// Reads a whole file.
///
/// # Errors
/// Blocks that are not closed or nested too deep.
pub fn parse(text: &str) -> Result<Vec<Statement>, SyntaxError> {
    let mut parser = Parser { tokens: tokens(text).into_iter().peekable(), depth: 0 };
    let mut statements = Vec::new();
    loop {
        statements.append(&mut parser.block(&[])?);
        // A stray closing word: step over it, as GRUB would only complain.
        if parser.tokens.next().is_none() {
            return Ok(statements);
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut word: Word = Vec::new();
    let mut chars = text.chars().peekable();
    let finish = |word: &mut Word, out: &mut Vec<Token>| {
        if !word.is_empty() {
            out.push(Token::Word(std::mem::take(word)));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\n' | ';' => {
                finish(&mut word, &mut out);
                out.push(Token::End);
            }
            c if c.is_whitespace() => finish(&mut word, &mut out),
            '#' if word.is_empty() => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' | '}' if word.is_empty() => {
                let text = c.to_string();
                // `}` also ends a statement without a line end before it.
                out.push(Token::Word(vec![Piece::Text { text, quoted: false }]));
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c) => push(&mut word, c, true),
            },
            '\'' => {
                push_empty(&mut word);
                while let Some(c) = chars.next().filter(|c| *c != '\'') {
                    push(&mut word, c, true);
                }
            }
            '"' => {
                push_empty(&mut word);
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    match c {
                        '\\' => {
                            let escaped = chars.next_if(|c| matches!(c, '"' | '\\' | '$' | '\n'));
                            match escaped {
                                Some('\n') => {}
                                Some(c) => push(&mut word, c, true),
                                None => push(&mut word, '\\', true),
                            }
                        }
                        '$' => variable(&mut word, &mut chars, true),
                        c => push(&mut word, c, true),
                    }
                }
            }
            '$' => variable(&mut word, &mut chars, false),
            c => push(&mut word, c, false),
        }
    }
    finish(&mut word, &mut out);
    out
}

fn push(word: &mut Word, c: char, quoted: bool) {
    match word.last_mut() {
        Some(Piece::Text { text, quoted: same }) if *same == quoted => text.push(c),
        Some(_) | None => word.push(Piece::Text { text: c.to_string(), quoted }),
    }
}

fn push_empty(word: &mut Word) {
    word.push(Piece::Text { text: String::new(), quoted: true });
}

fn variable(word: &mut Word, chars: &mut std::iter::Peekable<std::str::Chars<'_>>, quoted: bool) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        while let Some(c) = chars.next_if(|c| *c != '}' && *c != '\n') {
            name.push(c);
        }
        chars.next_if_eq(&'}');
    } else if let Some(c) = chars.next_if(|c| matches!(c, '?' | '@' | '#' | '*')) {
        name.push(c);
    } else {
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
    }
    if name.is_empty() {
        push(word, '$', quoted);
    } else {
        word.push(Piece::Variable { name, quoted });
    }
}

/// The text of a word that could be a keyword.
fn bare(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text { text, quoted: false }] => Some(text),
        _ => None,
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    /// Statements up to (not including) one of `until` or any other closing word at the place of a command.
    fn block(&mut self, until: &[&str]) -> Result<Vec<Statement>, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(SyntaxError::TooDeep);
        }
        let mut statements = Vec::new();
        while let Some(token) = self.tokens.peek() {
            let Token::Word(word) = token else {
                self.tokens.next();
                continue;
            };
            let key = bare(word).unwrap_or_default().to_owned();
            if until.contains(&key.as_str())
                || matches!(key.as_str(), "}" | "fi" | "then" | "else" | "elif" | "done")
            {
                break;
            }
            statements.push(self.statement(&key)?);
        }
        self.depth -= 1;
        Ok(statements)
    }

    fn statement(&mut self, key: &str) -> Result<Statement, SyntaxError> {
        match key {
            "if" => self.conditional(),
            "menuentry" | "submenu" => {
                self.tokens.next();
                let arguments = self.words_to_brace();
                let body = self.block(&["}"])?;
                self.close("}")?;
                Ok(Statement::Menu { sub: key == "submenu", arguments, body })
            }
            "function" => {
                self.words_to_brace();
                self.block(&["}"])?;
                self.close("}")?;
                Ok(Statement::Skipped)
            }
            "for" | "while" | "until" => {
                self.tokens.next();
                // `do` comes where a command would: step over the head and it.
                while self
                    .tokens
                    .next_if(|token| !matches!(token, Token::Word(word) if bare(word) == Some("do")))
                    .is_some()
                {}
                self.tokens.next();
                self.block(&["done"])?;
                self.close("done")?;
                Ok(Statement::Skipped)
            }
            _ => Ok(Statement::Command(self.words())),
        }
    }

    fn conditional(&mut self) -> Result<Statement, SyntaxError> {
        let mut arms = Vec::new();
        let mut otherwise = Vec::new();
        self.tokens.next();
        loop {
            let condition = self.block(&["then"])?;
            self.close("then")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            if self.take("elif") {
                continue;
            }
            if self.take("else") {
                otherwise = self.block(&["fi"])?;
            }
            self.close("fi")?;
            return Ok(Statement::If { arms, otherwise });
        }
    }

    fn take(&mut self, key: &str) -> bool {
        self.tokens.next_if(|token| matches!(token, Token::Word(word) if bare(word) == Some(key))).is_some()
    }

    fn close(&mut self, key: &'static str) -> Result<(), SyntaxError> {
        if self.take(key) { Ok(()) } else { Err(SyntaxError::Open(key)) }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) =
            self.tokens.next_if(|token| matches!(token, Token::Word(word) if bare(word) != Some("}")))
        {
            words.push(word);
        }
        words
    }

    /// The words before `{`, which is taken too; line ends do not matter there.
    fn words_to_brace(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        for token in self.tokens.by_ref() {
            let Token::Word(word) = token else { continue };
            if bare(&word) == Some("{") {
                break;
            }
            words.push(word);
        }
        words
    }
}
