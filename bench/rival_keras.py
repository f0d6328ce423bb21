"""The tutorial's network in Keras: 64 x 64, two rounds of convolution and pooling, 5 epochs. Prints test accuracy."""

import sys

import keras

folder = sys.argv[1]
options = {"image_size": (64, 64), "batch_size": 32, "label_mode": "binary"}
train = keras.utils.image_dataset_from_directory(f"{folder}/train", **options)
test = keras.utils.image_dataset_from_directory(f"{folder}/test", shuffle=False, **options)
model = keras.Sequential(
    [
        keras.layers.Rescaling(1 / 255),
        keras.layers.RandomZoom(0.2),
        keras.layers.RandomFlip("horizontal"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2, 2),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2, 2),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
model.fit(train, validation_data=test, epochs=5, verbose=0)
print(round(model.evaluate(test, verbose=0)[1], 4))
