//! A page of SVG in pixels. Text is placed by its anchor, which SVG knows: nothing here depends on how wide
//! a font turns out to be.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::{
    Circle, DrawingArea, FontStyle, FontTransform, IntoDrawingArea, IntoFont, PathElement, Polygon,
    Rectangle, SVGBackend, ShapeStyle, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor};

use crate::error::{Error, Result};

/// 16:9
const SIZE: (u32, u32) = (1600, 900);

pub type Place = (i32, i32);

pub struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

/// How text looks.
#[derive(Clone, Copy)]
pub struct Ink {
    size: i32,
    color: RGBColor,
    bold: bool,
    anchor: HPos,
}

impl Ink {
    pub fn plain(size: i32, color: RGBColor) -> Self {
        Self {
            size,
            color,
            bold: false,
            anchor: HPos::Left,
        }
    }

    pub fn bold(size: i32, color: RGBColor) -> Self {
        Self {
            bold: true,
            ..Self::plain(size, color)
        }
    }

    /// About, of a wide sans-serif.
    pub fn width(&self, text: &str) -> i32 {
        self.size * 62 * text.chars().count() as i32 / 100
    }

    pub fn right(self) -> Self {
        Self {
            anchor: HPos::Right,
            ..self
        }
    }

    pub fn centered(self) -> Self {
        Self {
            anchor: HPos::Center,
            ..self
        }
    }
}

impl<'a> Canvas<'a> {
    pub fn new(svg: &'a mut String) -> Result<Self> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        Ok(Self(area))
    }

    /// Ends the document.
    pub fn finish(&self) -> Result<()> {
        self.0.present().map_err(failed)
    }

    pub fn text(&self, text: &str, place: Place, ink: Ink) -> Result<()> {
        // plotters divides sizes by this to turn them into SVG's
        let size = 1.24 * f64::from(ink.size);
        let style = if ink.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let style = ("sans-serif", size)
            .into_font()
            .style(style)
            .color(&ink.color)
            .pos(Pos::new(ink.anchor, VPos::Center));
        let text = Text::new(text.to_owned(), place, style);
        self.0.draw(&text).map_err(failed)
    }

    /// A word in the picture, on white so that no line runs through it.
    pub fn label(&self, text: &str, place: Place, ink: Ink) -> Result<()> {
        let width = ink.width(text);
        let left = match ink.anchor {
            HPos::Left => place.0,
            HPos::Right => place.0 - width,
            HPos::Center => place.0 - width / 2,
        };
        let half = ink.size * 2 / 3;
        let corners = [(left, place.1 - half), (left + width, place.1 + half)];
        let ground = Rectangle::new(corners, WHITE.filled());
        self.0.draw(&ground).map_err(failed)?;
        self.text(text, place, ink)
    }

    pub fn line(&self, places: &[Place], color: RGBColor, width: u32) -> Result<()> {
        let line = PathElement::new(places.to_vec(), color.stroke_width(width));
        self.0.draw(&line).map_err(failed)
    }

    /// Text that runs upwards, from its place at the left end of its line.
    pub fn upward(&self, text: &str, place: Place, ink: Ink) -> Result<()> {
        let size = 1.24 * f64::from(ink.size);
        let style = ("sans-serif", size)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&ink.color)
            .pos(Pos::new(ink.anchor, VPos::Center));
        let text = Text::new(text.to_owned(), place, style);
        self.0.draw(&text).map_err(failed)
    }

    pub fn fill(&self, corners: [Place; 2], color: RGBColor) -> Result<()> {
        let rectangle = Rectangle::new(corners, color.filled());
        self.0.draw(&rectangle).map_err(failed)
    }

    /// The mark of a series, with a white edge.
    pub fn marker(&self, series: usize, place: Place, color: RGBColor) -> Result<()> {
        for (radius, color) in [(14.0, WHITE), (10.0, color)] {
            if series >= CORNERS.len() {
                let circle = Circle::new(place, radius as i32, color.filled());
                self.0.draw(&circle).map_err(failed)?;
                continue;
            }
            let corner = |&(x, y): &(f64, f64)| {
                let at = |center: i32, offset: f64| center + (radius * offset).round() as i32;
                (at(place.0, x), at(place.1, y))
            };
            let corners: Vec<Place> = CORNERS[series].iter().map(corner).collect();
            let polygon = Polygon::new(corners, color.filled());
            self.0.draw(&polygon).map_err(failed)?;
        }
        Ok(())
    }

    pub fn ring(&self, place: Place, color: RGBColor) -> Result<()> {
        let style = ShapeStyle::from(&color).stroke_width(3);
        let ring = Circle::new(place, 15, style);
        self.0.draw(&ring).map_err(failed)
    }
}

/// Triangle, square, diamond, triangle upside down, star; then comes the circle.
const CORNERS: [&[(f64, f64)]; 5] = [
    &[(0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    &[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    &[(0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
    &[
        (0.0, -1.4),
        (0.38, -0.43),
        (1.33, -0.43),
        (0.56, 0.16),
        (0.82, 1.13),
        (0.0, 0.55),
        (-0.82, 1.13),
        (-0.56, 0.16),
        (-1.33, -0.43),
        (-0.38, -0.43),
    ],
];

fn failed(error: impl Display) -> Error {
    Error::failed(format_args!("the picture: {error}"))
}
